"""Which row a stream reads at which position, and the reverse: functions of a seed, computed without any list."""
