"""Which layout is best: candidates counted by arithmetic, the best of them compiled. `plan` is where it begins."""
