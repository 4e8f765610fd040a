"""The ladder: many methods from the same data, policy, reward and budget, in one table.

A ladder is a YAML file. Its ``arms`` are recipes; its ``regimes`` are settings that decide a question each, such as how
many demonstrations there are. Every arm runs in every regime with every seed, and all of them may spend the same:
``budget.flops``, collected traces and supervised stages included. An arm that uses no demonstrations is the same run in
all regimes that differ in demonstrations alone, and is trained once.

Before the runs that count, ``search`` gives each arm the same number of tries at its own settings, with another seed
and on other held-out problems; the best try's settings are the arm's from then on. All tries are shown.

Runs are folders named after their resolved recipe. A ladder that was stopped goes on where it was, and a changed ladder
trains only what changed.
"""
