"""The site: `pages` to read, `engine` that renders them, `theme`, and `records` of what was measured."""
