"""Which queued jobs train where: pure policies, and the controller that carries them out."""
