"""One page a module: what an address asks for, as panels."""
