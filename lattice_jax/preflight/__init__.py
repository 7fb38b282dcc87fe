"""Will it fit? What an update of a config takes on chips that are not there: memory, time, communication."""
