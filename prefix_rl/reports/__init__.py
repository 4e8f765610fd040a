"""Reports: what a run did, to look at."""
