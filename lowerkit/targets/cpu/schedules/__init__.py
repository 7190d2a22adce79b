"""Loop schedules: one file per shape of computation. Schedules change the order of work, never its result
beyond the rounding of reordered sums."""
