"""MLflow's artifact store on an FTP server, with the promises of an object store."""
