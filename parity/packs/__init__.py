"""Packs: what Google's code computes, recorded so that anybody can check an implementation against it.

`record` makes a pack (it needs JAX); `check` compares with one (it does not). docs/check_your_port.md shows
both.
"""
