"""The commands. Each one reads its configuration, calls the library and prints what came out.

Imports every room below it.
"""
