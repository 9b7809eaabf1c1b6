"""What type checkers know of the API: code as a user writes it, for mypy and pyright to read.

Nothing here is executed. ``assert_type`` says what an expression is known to be. A line that is wrong on
purpose names the error that each checker finds in it; a checker that finds none complains of that.
"""
