"""Three services are asked at once; who asked goes on when all three have answered.

Shows ``send_event`` with several events, and a wait for several answers: waits look back to before the
question, so the answers may come in any order, and faster than anybody waits for them.
"""
