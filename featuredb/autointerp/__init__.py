"""Labels by a language model behind an endpoint, and scores of labels: `featuredb explain`."""
