"""The evidence: does a thinker that saw a card help a predictor whose window no longer shows it?"""
