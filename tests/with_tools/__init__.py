"""Exports read by the tools that they are made for, each a module."""
