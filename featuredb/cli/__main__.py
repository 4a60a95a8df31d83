"""`python -m featuredb.cli`: the command line without its installed script."""

from featuredb.cli.root import main

main(prog_name="featuredb")
