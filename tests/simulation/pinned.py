"""Seeds that are run by name: those that caught a mutation, and those that once found a bug.

A mutation with a schedule of its own (`directed.py`) is caught on that schedule. The bugs are the
mutations below under the names given here, so a seed of theirs fails again without its repair.
"""

FOUND: dict[int, str] = {
    2: "a takeover through a writer that had broken",
    6: "deadlines by a worker's own wall clock",
    9: "a partition was resumed without a position",
    12: "`Accepted` without its request, under a key",
    17: "a commit's positions did not cover ends without a start",
    106: "a cancel that was carried out was forgotten",
    240: "a commit that changes nothing took the group's offset back",
    236: "a claim forgotten by a clock that was ahead",
}

CAUGHT_BY: dict[str, tuple[int, ...]] = {
    "skip_the_fence": (12, 73, 84),
    "fence_one_partition": (4, 19, 73),
    "ignore_the_epoch": (17, 29, 32),
    "trust_the_generation": (7, 19, 73),
    "keep_unasked": (7, 16, 29),
    "nobody_is_late": (0, 11, 46),
    "half_fenced_is_not_fenced": (0, 11, 46),
    "accept_other_origins": (121, 226, 228),
    "repeat_after_overflow": (17, 34, 37),
    "skip_one_on_resume": (0, 2, 3),
    "fold_nothing": (0, 1, 2),
    "resume_off_by_one": (0, 1, 2),
    "forget_cancels_on_takeover": (151, 165, 189),
    "speak_while_fencing": (2, 18, 19),
    "drop_work_keep_offsets": (0, 1, 2),
    "keep_after_doubt": (0, 1, 2),
    "commit_early": (0, 1, 2),
    "commit_before_the_acks": (8, 192, 346),
    "no_commit_check": (0, 3, 7),
    "span_from_the_lowest": (2, 4, 6),
    "marks_forget_the_found": (0, 1, 2),
    "every_claim_wins": (6, 8, 10),
    "lost_claims_revive": (8, 19, 22),
    "commits_race": (498, 1366, 1629),
    "marks_forget_ends": (17, 21, 43),
    "two_wall_clocks": (6, 8, 16),
    "resume_without_position": (9, 17, 24),
    "accepted_side_by_side": (12, 171, 208),
    "speak_while_broken": (2, 105, 468),
    "cancel_once": (106, 313, 377),
    "forget_claims_by_own_clock": (3, 51, 59),
    "forget_claims_unread": (6, 19, 29),
    "believe_any_ack": (87, 98, 120),
    "expired_unread": (29, 48, 96),
    "hear_after_all_deadlines": (13, 428, 449),
}
