"""Closed-form fitting: what each kernel is to compute, and the ridge regression that gets it."""
