"""Configurations of models without their weights, as package data."""
