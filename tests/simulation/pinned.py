"""Seeds that are run by name: those that caught a mutation, and those that once found a bug.

A mutation with a schedule of its own (`directed.py`) is caught on that schedule. The bugs are the
mutations below under the names given here, so a seed of theirs fails again without its repair.
When the product's schedule changes, `python -m tests.simulation.repin` finds them anew.
"""

FOUND: dict[int, str] = {
    56: "a takeover through a writer that had broken",
    6: "deadlines by a worker's own wall clock",
    9: "a partition was resumed without a position",
    12: "`Accepted` without its request, under a key",
    17: "a commit's positions did not cover ends without a start",
    106: "a cancel that was carried out was forgotten",
    599: "a commit that changes nothing took the group's offset back",
    236: "a claim forgotten by a clock that was ahead",
    146: "a stream that was over said so only after a wait, to clients of less patience",
    436: "the same",
    4094: "a parked reader let into the run-up of a later one, whose epochs are not right there",
}

CAUGHT_BY: dict[str, tuple[int, ...]] = {
    "skip_the_fence": (12, 73, 84),
    "fence_one_partition": (8, 19, 121),
    "ignore_the_epoch": (12, 29, 40),
    "trust_the_generation": (0, 73, 232),
    "keep_unasked": (5, 7, 16),
    "nobody_is_late": (0, 11, 37),
    "half_fenced_is_not_fenced": (0, 11, 37),
    "accept_other_origins": (5, 121, 228),
    "repeat_after_overflow": (17, 34, 37),
    "skip_one_on_resume": (0, 2, 3),
    "expire_what_is_unread": (1, 2, 3),
    "wait_though_over": (1, 2, 3),
    "fold_nothing": (0, 2, 5),
    "resume_off_by_one": (0, 2, 5),
    "forget_cancels_on_takeover": (59, 102, 201),
    "speak_while_fencing": (7, 18, 29),
    "drop_work_keep_offsets": (0, 7, 8),
    "keep_after_doubt": (0, 1, 2),
    "commit_early": (0, 1, 2),
    "commit_before_the_acks": (163, 262, 464),
    "no_commit_check": (3, 4, 7),
    "span_from_the_lowest": (2, 4, 6),
    "marks_forget_the_found": (0, 5, 7),
    "every_claim_wins": (6, 8, 10),
    "lost_claims_revive": (8, 19, 22),
    "poison_parks_its_neighbours": (4, 5, 6),
    "commits_race": (33, 84, 115),
    "marks_forget_what_has_begun": (0, 1, 2),
    "marks_forget_ends": (16, 30, 43),
    "two_wall_clocks": (6, 8, 16),
    "resume_without_position": (9, 12, 19),
    "accepted_side_by_side": (12, 154, 208),
    "speak_while_broken": (29, 33, 49),
    "cancel_once": (202, 245, 377),
    "forget_claims_by_own_clock": (0, 1, 2),
    "forget_claims_unread": (0, 5, 12),
    "believe_any_ack": (63, 87, 98),
    "hear_after_all_deadlines": (169, 194, 284),
    "unchanged_goes_back": (1, 2, 3),
}
