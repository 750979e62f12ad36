"""What was measured, as a page to look at: one file of HTML that needs nothing else, no network and no script."""
