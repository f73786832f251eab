"""The weekly report: what is known of a week, what was predicted badly, what follows, the page and its print."""
