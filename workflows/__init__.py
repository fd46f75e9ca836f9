"""One referral, one workflow. Other programs use `messages` and `client`; nobody outside imports the workflow itself."""
