"""What the site has beside the pages as they are written; no part of the package."""
