"""A small world for a CPU: problems that math-verify grades, and a base policy that cannot solve them."""
