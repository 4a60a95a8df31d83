"""One module per published format. Each converts the files of a release to `SaeParts`."""
