"""What runs: the artifact store and the services that `workshop up` starts."""
