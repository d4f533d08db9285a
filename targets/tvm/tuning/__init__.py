"""Tuning: for each contraction of a model, choices are compiled, timed against the analytic model's, and the best kept.

kernel.py           a contraction as a function of its own
space.py            the choices worth trying, best estimate first
worker_build.py     the process that compiles choices
worker_measure.py   the process that times them
bench.py            timing in turns
lane.py             one of each, warm; what crashes or hangs is started again
database.py         what is known from earlier runs, in the cache folder
search.py           which choice to try next
tuner.py            from a model to its choices, within a budget
"""
