"""Tables as data: specifications (TOML), results (JSON) and the pages made from them. No logic lives here."""
