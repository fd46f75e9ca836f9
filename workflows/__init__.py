"""One referral, one workflow. Other programs use `messages` and `client`, never the workflow itself."""
