"""Episodes of a simulated right hand that reaches for, grasps and moves things on a table."""
