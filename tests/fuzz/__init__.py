"""Drawn files of all kinds that a run reads: accepted, or one named error; never a traceback or a hang.

The draws are the same each time. Others, and more of them: ``FUZZ_DRAWS=20 pytest tests/fuzz`` draws 20 times
as many, at random; what fails is printed with the values that repeat it.
"""
