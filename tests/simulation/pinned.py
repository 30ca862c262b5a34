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
    "ignore_the_epoch": (22, 29, 32),
    "trust_the_generation": (1, 73, 232),
    "keep_unasked": (5, 7, 16),
    "nobody_is_late": (0, 47, 74),
    "half_fenced_is_not_fenced": (0, 47, 74),
    "accept_other_origins": (100, 228, 275),
    "repeat_after_overflow": (17, 34, 37),
    "skip_one_on_resume": (0, 2, 3),
    "expire_what_is_unread": (1, 2, 3),
    "wait_though_over": (1, 3, 4),
    "fold_nothing": (0, 2, 5),
    "resume_off_by_one": (0, 2, 5),
    "forget_cancels_on_takeover": (15, 103, 201),
    "speak_while_fencing": (2, 7, 18),
    "drop_work_keep_offsets": (0, 2, 7),
    "keep_after_doubt": (0, 1, 2),
    "commit_early": (0, 1, 2),
    "commit_before_the_acks": (35, 156, 336),
    "no_commit_check": (3, 7, 11),
    "span_from_the_lowest": (2, 4, 6),
    "marks_forget_the_found": (0, 2, 8),
    "every_claim_wins": (6, 8, 10),
    "lost_claims_revive": (8, 24, 31),
    "poison_parks_its_neighbours": (4, 5, 6),
    "commits_race": (5, 44, 123),
    "marks_forget_what_has_begun": (0, 1, 2),
    "marks_forget_ends": (2, 16, 18),
    "two_wall_clocks": (5, 8, 16),
    "resume_without_position": (12, 17, 19),
    "accepted_side_by_side": (92, 124, 208),
    "speak_while_broken": (31, 50, 107),
    "cancel_once": (51, 184, 377),
    "forget_claims_by_own_clock": (0, 1, 2),
    "forget_claims_unread": (21, 57, 70),
    "believe_any_ack": (76, 86, 105),
    "hear_after_all_deadlines": (169, 194, 284),
    "unchanged_goes_back": (0, 2, 4),
    "look_back_by_append_time": (28, 82, 131),
}
