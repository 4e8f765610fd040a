"""The seam with TRL: the trainer wraps it, and asks a method its questions through the small modules beside it."""
