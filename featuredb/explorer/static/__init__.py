"""A database as a folder of files that any host with ranged requests serves: no server of ours."""
