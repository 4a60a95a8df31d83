"""One module per published format; each turns the files of a release into `SaeParts`."""
