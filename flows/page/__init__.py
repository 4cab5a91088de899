"""One web page for people who look rather than type: `dynammo app NAME`.

FastAPI with pages made on the server: it is a dependency already, its pages work with a keyboard
and on a phone, and what is sent to it can be bounded before it is read. Gradio would bring a server
and a build of JavaScript of its own.
"""
