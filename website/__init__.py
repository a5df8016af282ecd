"""What makes a site of docs/ (mkdocs.yml): it needs nothing of tvmatch but its source."""
