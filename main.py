"""Train or evaluate: `python main.py -cn PROTOCOL data=DATA output=FOLDER`; `python main.py --help` says more."""

from trainers.commands.train import main

if __name__ == "__main__":
    main()
