"""The simulation ground, public: an event loop in virtual time, scripted engines, a network between them, and the runs.

Nothing here is imported by another room; the runtime is given its loop, clock, ids and randomness from outside.
"""
