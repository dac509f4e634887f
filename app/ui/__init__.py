"""What all pages share: the look, the custom components, small pieces of HTML."""
