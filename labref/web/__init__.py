"""Loopback HTTP: the agent's application, the client, and the desk that asks whichever of agent and store there is. May
import operations and below."""
