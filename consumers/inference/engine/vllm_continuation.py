"""The half of a resumed run that lives in vLLM's process: what looks back at the tokens given so far.

A resumed run's earlier output is a part of its prompt, so vLLM's own penalties would not count it,
and its own guided decoding would begin with the grammar's first character. For such runs (and for no
others) both are switched off in vLLM and done here, with the same arithmetic in the same order. All
rows of a step are treated at once: a few tensor operations, and no wait for the device.
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import xgrammar
from vllm import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from consumers.inference.engine.vllm_arguments import CONTINUATION, Continued

log = logging.getLogger(__name__)


def open_grammars(config: Any, tokenizer: Any) -> XgrammarBackend | None:
    """The compiler of grammars that vLLM has, with its settings, so that both make the same masks.

    None for a tokenizer that it cannot read; vLLM then fails at the first guided run, not before.
    """
    try:
        return XgrammarBackend(
            config, tokenizer=tokenizer, vocab_size=config.model_config.get_vocab_size()
        )
    except Exception as error:  # noqa: BLE001 whatever it is, other runs do not need it
        log.warning("no grammars for this tokenizer: %s", type(error).__name__)
        return None


def open_matcher(backend: XgrammarBackend, schema: str, end_ids: Iterable[int]) -> Any:
    """A matcher of xgrammar's at the beginning of the JSON that `schema` allows, as vLLM makes it.

    Compiling takes milliseconds, for a large schema tenths of a second. Raises RuntimeError.
    """
    tight = backend.disable_any_whitespace
    separators = (",", ":") if tight else None
    compiled = backend.compiler.compile_json_schema(
        schema, any_whitespace=not tight, separators=separators
    )
    return xgrammar.GrammarMatcher(compiled, override_stop_tokens=list(end_ids))


def accepts(matcher: Any, token_ids: Iterable[int]) -> bool:
    """Goes on by these tokens; False, somewhere in between, at one that the grammar does not allow."""
    return all(matcher.accept_token(token_id) for token_id in token_ids)


@dataclass(slots=True, eq=False)
class _Row:
    """One run. `output_ids` is vLLM's own list of the tokens since the seam, and grows."""

    presence: float
    frequency: float
    logged_ids: list[int]
    output_ids: list[int]
    end_ids: list[int]
    matcher: "Future[Any] | None" = None
    accepted: int = 0
    lost: bool = False
    """The grammar could not be followed: nothing but the end may come. The other half sees it too."""

    def fill(self, bitmask: torch.Tensor, at: int) -> None:
        """Puts what may come next into row `at`; waits for a grammar that is still compiled."""
        assert self.matcher is not None
        try:
            matcher = self.matcher.result()
            new = given(self.output_ids, self.accepted)
            self.accepted += len(new)
            self.lost = self.lost or not accepts(matcher, new)
        except Exception as error:  # noqa: BLE001 an error here would end the engine with all its runs
            log.error("a grammar is lost: %s", type(error).__name__)  # noqa: TRY400 may quote it
            self.lost = True
        if self.lost or matcher.is_terminated():
            bitmask[at].fill_(-1)
        else:
            matcher.fill_next_token_bitmask(bitmask, at)


class _Penalties:
    """Of all rows that have some: how often each token was given, one line of `counts` a row."""

    def __init__(self, rows: Sequence[tuple[int, _Row]], logits: torch.Tensor) -> None:
        self._rows = [row for _, row in rows]
        self._seen = [0] * len(rows)
        device = logits.device
        self._at = torch.tensor([index for index, _ in rows], device=device)
        floats = {"dtype": torch.float32, "device": device}
        self._frequency = torch.tensor([[row.frequency] for row in self._rows], **floats)
        self._presence = torch.tensor([[row.presence] for row in self._rows], **floats)
        width = logits.shape[-1]
        logged = [torch.tensor(row.logged_ids, dtype=torch.int64) for row in self._rows]
        counts = torch.stack([torch.bincount(ids, minlength=width)[:width] for ids in logged])
        self._counts = counts.to(device)

    def apply(self, logits: torch.Tensor) -> None:
        """Counts what is new, and lowers the logits of what was given before."""
        lines, ids = [], []
        for line, row in enumerate(self._rows):
            new = given(row.output_ids, self._seen[line])
            self._seen[line] += len(new)
            lines += [line] * len(new)
            ids += new
        if ids:
            where = torch.tensor([lines, ids]).to(logits.device, non_blocking=True)
            ones = torch.ones_like(where[0])
            self._counts.index_put_((where[0], where[1]), ones, accumulate=True)
        # vLLM's operations in vLLM's order: another rounding could turn a close choice
        lowered = logits[self._at]
        lowered -= self._frequency * self._counts
        lowered -= self._presence * (self._counts > 0)
        logits[self._at] = lowered


class Continuation(LogitsProcessor):  # type: ignore[misc]  # vLLM's types are not followed
    """Given to vLLM by its import path. Runs without `CONTINUATION` in their parameters cost nothing.

    `apply` comes after vLLM's token biases and before its own penalties, which these runs have not.
    """

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: ARG002
        self._rows: dict[int, _Row] = {}
        self._penalties: _Penalties | None = None
        self._guided: list[tuple[int, _Row]] = []
        self._changed = False
        self._bitmask: torch.Tensor | None = None
        # now, and not in the middle of everybody's answers: reading a vocabulary takes a while
        tokenizer = cached_tokenizer_from_config(vllm_config.model_config)
        self._grammars = open_grammars(vllm_config, tokenizer)
        self._slots = vllm_config.scheduler_config.max_num_seqs
        # a grammar is compiled while the prompt is read
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        if process_dict_updates(self._rows, batch_update, self._row):
            self._changed = True

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if self._changed:
            self._changed = False
            rows = sorted(self._rows.items(), key=lambda item: item[0])
            penalised = [(at, row) for at, row in rows if row.presence or row.frequency]
            self._penalties = _Penalties(penalised, logits) if penalised else None
            self._guided = [(at, row) for at, row in rows if row.matcher is not None]
        if self._guided:
            self._guide(logits)
        if self._penalties is not None:
            self._penalties.apply(logits)
        return logits

    def _row(
        self, params: SamplingParams, prompt_ids: list[int] | None, output_ids: list[int]
    ) -> _Row | None:
        found = (params.extra_args or {}).get(CONTINUATION)
        if found is None:
            return None
        asked = Continued.from_argument(found)
        logged_ids = (prompt_ids or [])[len(prompt_ids or ()) - asked.logged :]
        row = _Row(
            asked.presence,
            asked.frequency,
            logged_ids,
            output_ids,
            sorted(params.all_stop_token_ids),
        )
        if asked.grammar is not None:
            row.matcher = self._compiler.submit(self._compile, asked.grammar, row)
        return row

    def _compile(self, schema: str, row: _Row) -> Any:
        assert self._grammars is not None  # the other half sends no grammar then
        matcher = open_matcher(self._grammars, schema, row.end_ids)
        row.lost = not accepts(matcher, row.logged_ids)
        return matcher

    def _guide(self, logits: torch.Tensor) -> None:
        if self._bitmask is None:
            assert self._grammars is not None
            self._bitmask = self._grammars.allocate_token_bitmask(self._slots)
        bitmask = self._bitmask[: len(self._guided)]
        for line, (_, row) in enumerate(self._guided):
            row.fill(bitmask, line)
        indices = [at for at, _ in self._guided]
        # one line a row of the batch is what its kernels take
        whole = torch.full((logits.shape[0], bitmask.shape[1]), -1, dtype=torch.int32)
        whole[indices] = bitmask
        xgrammar.apply_token_bitmask_inplace(logits, whole.to(logits.device), indices=indices)
        for at, row in self._guided:
            if row.lost:
                logits[at].fill_(float("-inf"))
                logits[at, row.end_ids] = 0.0


def given(ids: list[int], start: int) -> list[int]:
    """Tokens from `start` on that are known: vLLM holds a place with -1 for one not back yet."""
    new = ids[start:]
    return new[: new.index(-1)] if -1 in new else new
