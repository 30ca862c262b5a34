"""The base of every record: a frozen, typed msgspec Struct, encoded as one JSON object."""

import msgspec


class Wire(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    gc=False,
):
    """Unknown fields are refused: a misspelt option of a topic producer must not be ignored.

    Fields that hold their default are not written. Formats change in two steps (readers first,
    then writers); a record of a version that a reader does not know is refused, never guessed at.
    A record is a tree, so the collector of cycles need not know it (`gc`): answers are made of many.
    """
