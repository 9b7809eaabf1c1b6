"""The rules of the game: pure functions and values. No Django, no Celery, no I/O."""
