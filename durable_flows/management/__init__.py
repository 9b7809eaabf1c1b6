"""What ``manage.py flows`` runs: the turn by hand, and everything at once for development."""
