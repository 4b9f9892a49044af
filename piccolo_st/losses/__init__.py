"""Losses for Piccolo training."""
