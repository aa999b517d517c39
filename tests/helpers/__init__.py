"""What several tests share: data with known answers, folders, servers, commands."""
