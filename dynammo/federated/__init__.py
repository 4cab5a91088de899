"""Sites that share no images: each sends an adapter and class statistics, which are added up."""
