"""Pictures to try the service with, and the code that draws them."""
