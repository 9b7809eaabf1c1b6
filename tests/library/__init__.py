"""An app of models for tests: of every kind of field, of every kind of inheritance, with every policy."""
