"""Questions of a database as tools of language models: `featuredb mcp`.

The package `mcp` is imported only here.
"""
